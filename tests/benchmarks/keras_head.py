"""A plain Keras script that trains a head on arrays. Called with a feature set and a file for the model.

Prints the seconds of each epoch.
"""

import sys
import time
from pathlib import Path

import keras
import numpy as np
import pyarrow.parquet as pq

tables = [pq.read_table(path) for path in sorted(Path(sys.argv[1]).glob("part-*.parquet"))]
features = np.concatenate([table["features"].combine_chunks().to_numpy_ndarray() for table in tables])
labels = [label for table in tables for label in table["label"].to_pylist()]
targets = np.array([label == max(labels) for label in labels], "float32")
model = keras.Sequential(
    [
        keras.Input(features.shape[1:]),
        keras.layers.Flatten(),
        keras.layers.Dense(256, activation="relu"),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(1, activation="sigmoid"),
    ]
)
model.compile(keras.optimizers.RMSprop(2e-5), "binary_crossentropy", metrics=["accuracy"])
times = [time.perf_counter()]
clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: times.append(time.perf_counter()))
model.fit(features, targets, batch_size=32, epochs=30, verbose=0, callbacks=[clock])
model.save(sys.argv[2])
print(*np.diff(times))

"""Images that crash or stall the process that decodes them; done for real, by signals."""

import io

from PIL import Image

CRASHING, KILLED, HANGING = (13, 17), (13, 18), (13, 19)
LARGE_CRASHING = (104, 136)
SECONDS = 2.0
HARM = f"""
import os, signal, time
import simplejpeg
from PIL import ImageFile
load = ImageFile.ImageFile.load

def harm(image, *arguments):
    if image.size == {CRASHING}:
        os.kill(os.getpid(), signal.SIGSEGV)
    if image.size == {KILLED}:
        os.kill(os.getpid(), signal.SIGKILL)
    if image.size == {HANGING}:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        while True:
            time.sleep(60)
    return load(image, *arguments)

decode_jpeg = simplejpeg.decode_jpeg

def harm_jpeg(data, **options):
    pixels = decode_jpeg(data, **options)
    if pixels.shape[1::-1] == {LARGE_CRASHING}:
        os.kill(os.getpid(), signal.SIGSEGV)
    return pixels

ImageFile.ImageFile.load, simplejpeg.decode_jpeg = harm, harm_jpeg
"""
"""Run by each Python process as it starts: a fault in Pillow's native code would do the same, and the kernel
where memory runs out."""


def picture(size: tuple[int, int] = (20, 20), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(stream, kind)
    return stream.getvalue()

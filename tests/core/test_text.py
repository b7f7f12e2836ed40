"""Text is printed and stored without credentials, and without characters that deceive."""

import json

import pytest

from tlray.core.record import dump
from tlray.core.storage import Folder
from tlray.core.text import escaped, has_credentials, printable, without_credentials

SECRET = "hunter2-hunter2"
URIS = [
    # Each as typed and as shown.
    (f"s3://key:{SECRET}@bucket/x", "s3://bucket/x"),
    (f"s3://key:a/b+{SECRET}@bucket/x", "s3://bucket/x"),
    (f"s3://key:12/{SECRET}/@bucket/a@2x.png", "s3://bucket/a@2x.png"),
    (f"S3://{SECRET}@bucket/x", "S3://bucket/x"),
    (
        f"s3://bucket/my x?region=eu&secret_key={SECRET}",
        "s3://bucket/my x?region=eu&secret_key=***",
    ),
    (f"http://user:{SECRET}@host:80/x", "http://host:80/x"),
    (f"https://user:a@{SECRET}@host/x", "https://host/x"),
    (f"https://{SECRET}@host/x", "https://host/x"),
    (f"http://u:{SECRET}@[::1]:80/a@b", "http://[::1]:80/a@b"),
    (f"sftp://bob:{SECRET}@host/x", "sftp://host/x"),
    (f"hdfs://bob%3A{SECRET}@host/x", "hdfs://host/x"),
    (f"abfs://:{SECRET}@account.blob/x", "abfs://account.blob/x"),
    (f"simplecache::s3://key:{SECRET}@bucket/x", "simplecache::s3://bucket/x"),
    (f"https://h/x.tar?X-Amz-Credential={SECRET}&n=1", "https://h/x.tar?X-Amz-Credential=***&n=1"),
    (f"https://h/x.tar?n=1&X-Goog-Signature={SECRET}", "https://h/x.tar?n=1&X-Goog-Signature=***"),
    (f"https://h/x?sv=1&sig={SECRET}", "https://h/x?sv=1&sig=***"),
    (f"https://h/x?%73ig={SECRET}", "https://h/x?%73ig=***"),
    (f"https://h/x?key=AIza{SECRET}", "https://h/x?key=***"),
    (f"https://h/x#access_token={SECRET}", "https://h/x#access_token=***"),
]


@pytest.mark.parametrize(("uri", "shown"), URIS)
def test_credentials_are_not_shown(uri, shown):
    assert without_credentials(uri) == shown
    assert printable(f"cannot open '{uri}': no\n") == f"cannot open '{shown}': no\n"
    assert has_credentials(uri)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@2x.png",
        "s3://bucket/a:b@c",
        "http://host:8080/a@2x.png",
        "http://HEAD:8265",
        "sftp://bob@host/x",
        "abfs://container@account.dfs.core.windows.net/x",
        "https://host/get?key=a.png&design=1",
        "/data/token=5/a.png",
        "tlray extract /a --out /b --classes key,token",
        "TOKEN=$TOKEN tlray plugins show token",
        "set RAY_AUTH_MODE=token",
    ],
)
def test_other_texts_stay_as_they_are(text):
    assert without_credentials(text) == text
    assert not has_credentials(text)


@pytest.mark.parametrize(
    "line",
    [
        f"AWS_SECRET_ACCESS_KEY={SECRET} tlray extract a",
        f"export TOKEN='{SECRET}'; tlray extract a",
        f"tlray x --password {SECRET}",
        f"tlray x --api-key={SECRET}",
        f"http%3A%2F%2Fu%3A{SECRET}%40h",
    ],
)
def test_credentials_in_a_command_line(line):
    assert has_credentials(line)


def test_what_a_folder_is_called_has_no_password():
    folder = Folder.open(f"http://user:{SECRET}@127.0.0.1:1/photos")
    assert folder.uri == "http://127.0.0.1:1/photos"
    assert SECRET not in folder.child("a").uri
    assert SECRET in folder.path  # It is still used.


def test_deceiving_characters():
    evil = "a\x1b[2J\r\x9b\u202eb\u2066c\udc80\U000e0041"
    assert escaped(f"{evil}\n\t") == "a\\x1b[2J\\r\\x9b\\u202eb\\u2066c\\udc80\\U000e0041\\n\\t"
    assert printable(f"{evil}\n\tü") == f"{escaped(evil)}\n\tü"
    assert printable("👩\u200d🚀") == "👩\u200d🚀"
    text = printable(dump({evil: evil}), as_json=True)
    assert json.loads(text) == {evil: evil}
    values = {"uri": f"http://u:{SECRET}@host:1", "b": "a@b", "c": f"http://host?sig={SECRET}", "d": "s3://e"}
    text = printable(dump([values, "http://h:1", "a@b"]), as_json=True)
    assert json.loads(text)[0] | {"c": ""} == values | {"uri": "http://host:1", "c": ""}
    assert SECRET not in text
    assert text.isprintable()

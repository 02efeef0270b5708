# SPDX-License-Identifier: Apache-2.0
"""The library under these tests is the published one and nothing else."""

import base64
import hashlib
import importlib.metadata

import pandastack


def test_every_file_is_as_it_was_published():
    distribution = importlib.metadata.distribution("pandastack")
    assert distribution.version == pandastack.__version__ == "0.10.0"
    sources = [f for f in distribution.files if f.hash is not None]
    assert len(sources) > 10
    for file in sources:
        digest = hashlib.new(file.hash.mode, file.locate().read_bytes()).digest()
        assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value, file


def test_it_is_the_one_that_is_imported():
    files = importlib.metadata.distribution("pandastack").files
    places = {str(file.locate().resolve()) for file in files}
    assert pandastack.__file__ in places

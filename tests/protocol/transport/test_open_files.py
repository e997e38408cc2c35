"""What a process does that may not open any more files."""

from __future__ import annotations

import pytest
import structlog

from gymwire.protocol.transport.open_files import CHECK_S, WARNING_S, Watch

resource = pytest.importorskip("resource", reason="Windows has no such limit")
LIMIT = 3  # fewer than this process has open


def test_a_process_without_descriptors_warns_once_a_minute() -> None:
    files = Watch()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with structlog.testing.capture_logs() as log:
        files.check(0.0)
        assert not log
        resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, hard))
        try:
            files.check(CHECK_S)
            files.check(CHECK_S + WARNING_S / 2)
            assert [(line["open"], line["limit"]) for line in log] == [(LIMIT, LIMIT)]
            files.check(CHECK_S + WARNING_S)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [line["event"] for line in log] == 2 * ["no file descriptors left"]
    assert "ulimit -n" in log[0]["why"]

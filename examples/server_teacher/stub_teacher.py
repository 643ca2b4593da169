"""Serve the embedded teacher as vLLM would, for trying this example where vLLM is not installed.

    python examples/server_teacher/stub_teacher.py            # hidden states, as with --runner pooling
    python examples/server_teacher/stub_teacher.py --scores   # log-probabilities, as without it

It is the server of the tests (tests/teachers/stub_server.py): transformers on one thread, on a free port of the
loopback address. It answers the requests that a vLLM server answers, slowly, and is no server for real work.
"""

import argparse
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from teachers.stub_server import StubServer
from vopd.experiments.pair import load_embedded_pair

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--scores", action="store_true", help="serve log-probabilities instead of hidden states")
    scores = parser.parse_args().scores
    pair = load_embedded_pair()
    server = StubServer(pair.teacher, pair.tokenizer, pools=None if scores else "token_embed", scores_chosen=False)
    what = "log-probabilities" if scores else "hidden states"
    print(f"serving {server.names[0]} ({what}) at {server.url}; Ctrl-C ends it", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        server.close()

"""A server of chat completions in a thread, for tests."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Fake:
    """A server that answers from a list, then by its default: status, content and headers, or a
    function of the request's body that gives them."""

    def __init__(self):
        self.requests = []
        self.answers = []
        self.drops = None
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                fake.requests.append((self.path, body, dict(self.headers)))
                given = fake.answers.pop(0) if fake.answers else fake.default
                status, answer, headers = given(body) if callable(given) else given
                payload = (
                    answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                )
                self.send_response(status)
                for key, value in {**headers, "content-length": str(len(payload))}.items():
                    self.send_header(key, value)
                self.end_headers()
                # In drops: a byte at a time, so many seconds apart.
                for piece in [payload] if fake.drops is None else map(bytes, zip(payload)):
                    self.wfile.write(piece)
                    time.sleep(fake.drops or 0)

            def log_message(self, *_):
                pass

        self.default = (200, completion("<answer>1</answer>"), {})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # clients that do not wait
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def completion(text, finish="stop", **more):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish, **more}
    return {"choices": [choice]}


def alternatives(**logps):
    """A completion of one token with these alternatives."""
    top = [{"token": token, "logprob": logp} for token, logp in logps.items()]
    return completion("?", logprobs={"content": [{"token": "?", "top_logprobs": top}]})

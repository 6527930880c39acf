"""A web service for the agent to call: https://127.0.0.1:8443, with server.pem beside it. It greets
whoever brings the right token, and writes down what it was asked.

    python3 server.py TOKEN
"""

import http.server
import ssl
import sys


class Greeter(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        authorized = self.headers["Authorization"] == "Bearer " + sys.argv[1]
        body = b"hello, agent\n" if authorized else b"who are you?\n"
        self.send_response(200 if authorized else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("server.pem")
server = http.server.HTTPServer(("127.0.0.1", 8443), Greeter)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()

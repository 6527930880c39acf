"""An agent in a partition, with nothing but Python's standard library.

It reads a repository that is mounted, asks a web server that was granted, is refused another one,
edits a file through a tool, rolls that back, and waits until a person lets it do one thing more. It
holds no secret: API_TOKEN is a placeholder, which the gateway replaces on the way to the one server
that it is bound to.
"""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request

HOST_CID = 2  # vsock(7): the host
TOOLS_PORT = 1024  # docs/tools.md


def say(text):
    print("agent:", text, flush=True)


class Tools:
    """The partition's tools: MCP, one JSON message a line, over vsock."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        self.socket.connect((HOST_CID, TOOLS_PORT))
        self.lines = self.socket.makefile("r", encoding="utf-8")
        self.id = 0
        self.request(
            "initialize",
            protocolVersion="2025-06-18",
            capabilities={},
            clientInfo={"name": "agent", "version": "1"},
        )
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def send(self, message):
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def request(self, method, **params):
        self.id += 1
        self.send({"jsonrpc": "2.0", "id": self.id, "method": method, "params": params})
        for line in self.lines:
            answer = json.loads(line)
            if answer.get("id") == self.id:
                if "error" in answer:
                    raise RuntimeError(answer["error"]["message"])
                return answer["result"]
        raise RuntimeError("the tools are gone")

    def names(self):
        return [tool["name"] for tool in self.request("tools/list")["tools"]]

    def call(self, tool, **arguments):
        """What the tool answers, and the number by which the call can be taken back."""
        result = self.request("tools/call", name=tool, arguments=arguments)
        if result.get("isError"):
            raise RuntimeError(result["content"][0]["text"])
        return result["structuredContent"], result.get("_meta", {}).get("bulkhead/call")


def fetch(url, **headers):
    """The status and the text of an answer, whatever it is."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read().decode().strip()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode().strip()


def main():
    log = ["git", "-C", "/workspace", "log", "-1", "--format=%s"]
    commit = subprocess.run(log, check=True, capture_output=True, text=True).stdout.strip()
    with open("/workspace/notes.txt", encoding="utf-8") as notes:
        say("read: %s (%s)" % (notes.read().strip(), commit))

    api = "https://api.example.org"
    token = "Bearer " + os.environ["API_TOKEN"]
    say("granted: %d %s" % fetch(api + "/v1/greeting", Authorization=token))
    say("not permitted: %d %s" % fetch(api + "/v1/private/key", Authorization=token))
    say("not granted: %d %s" % fetch(api + "/v2/greeting", Authorization=token))
    try:
        say("elsewhere: %d %s" % fetch("https://elsewhere.example.org/", Authorization=token))
    except urllib.error.URLError as refused:
        say("elsewhere: %s" % refused.reason)

    tools = Tools()
    say("tools: " + " ".join(sorted(tools.names())))
    allowed, _ = tools.call("net.allowed", host="elsewhere.example.org", port=443)
    say("elsewhere is allowed: %s" % json.dumps(allowed))
    roots = tools.call("fs.roots")[0]["roots"]
    notes = next(place["path"] for place in roots if place["write"]) + "/notes.txt"
    _, edit = tools.call("fs.edit", path=notes, old="draft", new="final")
    say("edited: " + tools.call("fs.read", path=notes)[0]["content"].strip())
    tools.call("tool.rollback", call=edit)
    say("rolled back: " + tools.call("fs.read", path=notes)[0]["content"].strip())

    say("asks a person")
    try:
        tools.call("fs.delete", path=notes)
        say("deleted: %s" % (not os.path.exists("/workspace/notes.txt")))
    except RuntimeError as refused:
        say("not deleted: %s" % refused)


if __name__ == "__main__":
    sys.exit(main())

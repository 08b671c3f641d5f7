"""Two clients of slixmpp in clear: bob answers what alice says. Prints what both saw.

Arguments: password.
"""

import asyncio
import sys

from slixmpp import ClientXMPP

COUNT = 50


class Client(ClientXMPP):
    def __init__(self, name):
        super().__init__(
            f"{name}@site.example/needle",
            sys.argv[1],
            plugin_config={"feature_mechanisms": {"unencrypted_scram": True}},
        )
        self.enable_plaintext = True
        self.enable_starttls = False
        self.enable_direct_tls = False
        self.ready = asyncio.Event()
        self.heard = []
        self.complete = asyncio.Event()
        self.offered = ""
        self.add_event_handler("session_start", self.started)
        self.add_event_handler("message", self.hear)
        self.add_event_handler("failed_all_auth", lambda _: sys.exit("not authenticated"))
        self.add_event_handler("stream_error", lambda error: sys.exit(f"error: {error['text']}"))

    async def started(self, _):
        self.send_presence()
        await self.get_roster()
        self.ready.set()

    def hear(self, message):
        self.heard.append(message["body"])
        if self.boundjid.user == "bob":
            message.reply("answer to " + message["body"]).send()
        if len(self.heard) == COUNT:
            self.complete.set()


async def main():
    alice, bob = Client("alice"), Client("bob")
    for client in (alice, bob):
        client.connect("10.99.0.2", 5222)
        await client.ready.wait()
    for number in range(COUNT):
        alice.send_message("bob@site.example/needle", f"needle {number} " + "long " * 1000)
    await asyncio.gather(alice.complete.wait(), bob.complete.wait())
    print(len(bob.heard), "heard,", sum(map(len, bob.heard)), "letters")
    print(len(alice.heard), "answered,", sum(map(len, alice.heard)), "letters")
    for client in (alice, bob):
        await client.disconnect()


asyncio.run(asyncio.wait_for(main(), 30))

"""Works on ou=python,dc=site with ldap3 in clear and prints what it saw.

Arguments: password.
"""

import sys

from ldap3 import MODIFY_REPLACE, NONE, Connection, Server

server = Server("10.99.0.2", get_info=NONE)
manager = Connection(
    server, "cn=admin,dc=site", sys.argv[1], auto_bind=True, raise_exceptions=True
)
manager.add("ou=python,dc=site", "organizationalUnit")
for number in range(20):
    name = f"needle-person-{number:02}"
    attributes = {"sn": name, "userPassword": "needle-of-a-person"}
    manager.add(f"cn={name},ou=python,dc=site", "person", attributes)
manager.modify(
    "cn=needle-person-07,ou=python,dc=site",
    {"description": [(MODIFY_REPLACE, ["needle of ldap3: " + "long " * 20_000])]},
)
manager.delete("cn=needle-person-19,ou=python,dc=site")
found = list(
    manager.extend.standard.paged_search(
        "ou=python,dc=site", "(objectClass=person)", attributes=["description"], paged_size=7
    )
)
print(len(found), "found")
print(sum(len("".join(one["attributes"]["description"])) for one in found), "described")
print(manager.extend.standard.who_am_i())
manager.unbind()

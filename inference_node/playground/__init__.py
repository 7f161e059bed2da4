"""A page to look at: one prompt, several personas, side by side. For a person at the machine.

page.html  the page, no build step; it talks JSON as the gateway takes it
relay.py   that JSON as calls of the node, and answers and errors back
web.py     both over HTTP on loopback, for pages of this very address alone
"""

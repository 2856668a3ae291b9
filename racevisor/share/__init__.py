"""A search shared out among workers: pieces of work, what comes back of them, and what is the same however they were shared.

Nothing here knows Ray or processes; cluster/search.py does.
"""

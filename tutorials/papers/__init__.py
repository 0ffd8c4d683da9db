"""Pages of papers: each checks what its paper claims, and ``pyro-ext reproduce`` runs it."""

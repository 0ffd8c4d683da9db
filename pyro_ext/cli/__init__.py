"""The command ``pyro-ext``: the door of the house. It alone looks at every floor."""

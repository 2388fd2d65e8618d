"""The command line, one module for each command: its name, its help, its arguments and what it does.

`gadgets.commands.main.Command` says what such a module has. A new command is a new module and its entry in
`gadgets.commands.main.COMMANDS`. Modules import what is heavy (torch, h5py) in their `run`, so that help comes at once.
"""

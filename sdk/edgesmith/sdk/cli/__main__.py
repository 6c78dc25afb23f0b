"""``python -m edgesmith.sdk.cli``: the command line where the script is not on the path."""

from edgesmith.sdk.cli.app import main

main()

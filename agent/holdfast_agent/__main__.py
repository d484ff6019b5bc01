"""`python -m holdfast_agent`: the same as the command."""

from holdfast_agent.main import main

main()

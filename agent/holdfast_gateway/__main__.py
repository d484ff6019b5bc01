"""`python -m holdfast_gateway`: the same as the command."""

import sys

from holdfast_gateway.main import main

sys.exit(main())

"""impatient.py -conf FILE: a server that looks at every message whether its client is still let in, and
tidies its storage several times a second."""

import sys

from cmd import server
from internal.biz import session
from internal.data.sql import retention

vars(session)["VALID_FOR_S"] = 0.0
vars(retention)["INTERVAL_S"] = 0.2
sys.exit(server.main())

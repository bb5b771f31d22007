#!/bin/sh
cat /planted/only-start.bin >/dev/null
exec python /planted/server.py

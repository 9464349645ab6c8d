"""The methods: one file each, base.py holds the contracts."""

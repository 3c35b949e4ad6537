"""Token stores: from files to one long stream of ids on the disk, and back. No torch."""

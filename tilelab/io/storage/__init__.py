"""Where bytes lie: files, folders and remote stores, used alike."""

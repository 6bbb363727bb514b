"""What is kept on disk: files, folders, caches by content, run folders and stages of work."""

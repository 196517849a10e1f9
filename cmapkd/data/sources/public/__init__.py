"""What the sources share that read publishers' files from disk: pictures, archives, tables, downloads, reports."""

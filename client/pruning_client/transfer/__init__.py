"""Files to and from the server: resumable, checksummed, and never half written where the caller looks."""

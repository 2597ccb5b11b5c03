"""The phases of a run, one file each: functions that take and return immutable values."""

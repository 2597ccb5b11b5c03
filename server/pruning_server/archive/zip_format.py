"""The records and numbers of the zip format (PKWARE APPNOTE 6.3.10, with ZIP64)."""

from __future__ import annotations

import struct

STORED = 0
DEFLATED = 8

LOCAL_SIGNATURE = b"PK\x03\x04"
CENTRAL_SIGNATURE = b"PK\x01\x02"
END_SIGNATURE = b"PK\x05\x06"
END64_SIGNATURE = b"PK\x06\x06"
LOCATOR64_SIGNATURE = b"PK\x06\x07"

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR64 = struct.Struct("<4sIQI")

FLAG_ENCRYPTED = 0x0001
FLAG_DESCRIPTOR = 0x0008
FLAG_UTF8 = 0x0800

UINT16_MAX = 0xFFFF
UINT32_MAX = 0xFFFFFFFF
ZIP64_EXTRA_ID = 0x0001

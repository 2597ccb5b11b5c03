"""How a target is shared out among layers: in which order channels go. One file per way; `Scope` names them."""

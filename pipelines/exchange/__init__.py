"""Published features in, and datasets out, in the forms of this field's other tools."""

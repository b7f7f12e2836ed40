"""The backbones and heads that come with tlray, registered through entry points like any plugin."""

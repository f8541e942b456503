package mcast

func hostPlatform() *platform { return darwinPlatform() }

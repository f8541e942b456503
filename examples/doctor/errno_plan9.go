package main

func isInUse(error) bool { return false }

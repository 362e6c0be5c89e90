package main

import (
	"net"
	"strings"

	"downlink/bridge/emulator/identity"
)

// checkHostnames refuses what cannot be a hub's name before anything is made of it.
func checkHostnames(names []string) error {
	for i, name := range names {
		if err := identity.CheckHostname(name); err != nil {
			return usagef("--hostname: %w", err)
		}
		if i == 0 && strings.ContainsAny(name, ":[]") {
			return usagef("--hostname: %q: the first one stands in the connection strings, which cannot have an IPv6 address: give a name before it", name)
		}
	}
	return nil
}

// checkListen refuses what is no address at all; whether this machine has it
// and nobody else listens there is found out by listening.
func checkListen(flag, address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || strings.ContainsAny(host, " \t/") {
		return usagef("%s: %q is not host:port, such as 127.0.0.1:0", flag, address)
	}
	if _, err := net.LookupPort("tcp", port); err != nil || port == "" {
		return usagef("%s: %q: %q is not a port; take 0 (a free one) to 65535", flag, address, port)
	}
	return nil
}

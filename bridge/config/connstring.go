package config

import (
	"errors"
	"fmt"
	"strings"

	"downlink/bridge/internal/sas"
)

// checkHubString tells whether s opens a hub's service side. Its error never
// contains a secret.
func checkHubString(s Secret) error {
	c, err := sas.Parse(s.Reveal())
	if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "connection string: ")) // the path says so already
	}
	switch c.Kind() {
	case sas.KindService:
		for _, policy := range []string{"registryRead", "registryReadWrite", "device"} {
			// The hub's default policies (IoT Hub developer guide, "Control access to
			// IoT Hub with shared access signatures"); one made by hand may hold any right.
			if strings.EqualFold(c.KeyName, policy) {
				return fmt.Errorf("the policy %s has no ServiceConnect permission; take the connection string of the policy service", policy)
			}
		}
		return nil
	case sas.KindDevice, sas.KindModule:
		return fmt.Errorf("a %s connection string; the bridge needs the hub's: in the portal under Shared access policies, service", c.Kind())
	case sas.KindEventHubs:
		return errors.New("an Event Hubs connection string, which only reads what devices send; take the one under Shared access policies, service")
	default:
		return errors.New("not a service connection string")
	}
}

// checkDeviceString tells whether s connects a device. Its error never contains a secret.
func checkDeviceString(s Secret) error {
	c, err := sas.Parse(s.Reveal())
	if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "connection string: ")) // the path says so already
	}
	switch kind := c.Kind(); {
	case kind == sas.KindDevice && c.X509:
		return errors.New("x509=true: client certificates are not supported; give the device a symmetric key")
	case kind == sas.KindDevice:
		return nil
	case kind == sas.KindModule:
		return errors.New("a module connection string; cloud-to-device messages reach devices only, take the device's")
	case kind == sas.KindService:
		return fmt.Errorf("a service connection string (policy %s); the relay needs the device's own: in the portal under Devices", show(c.KeyName))
	case kind == sas.KindEventHubs:
		return errors.New("an Event Hubs connection string; the relay needs the device's own: in the portal under Devices")
	default:
		return errors.New("not a device connection string")
	}
}

// identity is the hub and device of a device's connection string, for finding twins.
func identity(s Secret) (hub, device string) {
	c, err := sas.Parse(s.Reveal())
	if err != nil {
		return "", ""
	}
	return strings.ToLower(c.HostName), c.DeviceID
}

// ID is the device's ID, as its connection string has it; empty if that was not read.
func (d Device) ID() string {
	if d.Embedded != "" {
		return d.Embedded
	}
	_, id := identity(d.ConnectionString)
	return id
}

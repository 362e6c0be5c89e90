package emulator

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"downlink/bridge/emulator/amqpd"
	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/entra"
	"downlink/bridge/emulator/identity"
	"downlink/bridge/emulator/mqttd"
	"downlink/bridge/emulator/throttle"
	"downlink/bridge/emulator/virtual"
	"downlink/bridge/internal/sas"
)

// authority verifies tokens for every endpoint, and with the AMQP endpoint's
// Enqueue it is that endpoint's backend.
type authority struct {
	*c2d.Store
	fleet    *virtual.Fleet
	identity *identity.Identity
	throttle *throttle.Throttle
	entra    *entra.Verifier // nil: no Entra tokens
	hosts    []string        // the names under which clients may know this hub
	any      bool            // devices that are not registered yet may sign in
	now      func() time.Time
	log      *slog.Logger
}

// Enqueue queues a message. A virtual device that completes at once has done so when it returns, as a rule.
func (a *authority) Enqueue(m c2d.Message) error {
	err := a.Store.Enqueue(m)
	if err == nil {
		a.fleet.Help()
	}
	return err
}

// verified parses a token, checks expiry, and that it covers the resource (a
// path under one of the hub's names).
func (a *authority) verified(token, path string) (sas.Token, error) {
	t, err := sas.ParseToken(token)
	if err != nil {
		return t, err
	}
	if !a.now().Before(t.Expiry) {
		return t, fmt.Errorf("the token expired at %s", t.Expiry.Format(time.RFC3339))
	}
	for _, h := range a.hosts {
		if t.Covers(h + path) {
			return t, nil
		}
	}
	return t, fmt.Errorf("the token is for %.300q, not for %s", t.Resource, a.hosts[0]+path)
}

// policy verifies a token that a policy signed and returns that policy's rights.
func (a *authority) policy(t sas.Token) (identity.Rights, error) {
	p, ok := a.identity.Policy(t.KeyName)
	if !ok {
		return 0, fmt.Errorf("no policy %.100q", t.KeyName)
	}
	if !t.Verify(p.Primary) && !t.Verify(p.Secondary) {
		return 0, fmt.Errorf("the token is not signed with a key of policy %s", p.Name)
	}
	return p.Rights, nil
}

// Authorize is amqpd's authority. Why a token is refused is for the log alone.
func (a *authority) Authorize(token string) (amqpd.Grant, error) {
	if entra.IsBearer(token) {
		return a.authorizeEntra(token)
	}
	t, err := a.verified(token, "")
	if err == nil {
		var rights identity.Rights
		if rights, err = a.policy(t); err == nil {
			return amqpd.Grant{Policy: t.KeyName, Expires: t.Expiry, ServiceConnect: rights&identity.ServiceConnect != 0}, nil
		}
	}
	a.log.Info("refused a service's token", "err", err)
	return amqpd.Grant{}, err
}

// noEntra answers who has no use for trying again with another token.
var noEntra = &c2d.Refusal{Condition: "amqp:unauthorized-access", Code: 401003, Text: "this hub takes shared access signatures, not Entra tokens (downlink hub --entra-issuer)"}

// authorizeEntra verifies an Entra token. Roles are Azure's matter: whom the
// issuer gives a token for IoT Hub may do what services do.
func (a *authority) authorizeEntra(token string) (amqpd.Grant, error) {
	if a.entra == nil {
		a.log.Info("refused a service's token", "err", noEntra.Text)
		return amqpd.Grant{}, noEntra
	}
	who, err := a.entra.Verify(token)
	if err != nil {
		a.log.Info("refused a service's Entra token", "err", err)
		return amqpd.Grant{}, err
	}
	return amqpd.Grant{Policy: "entra:" + who.Subject, Expires: who.Expires, ServiceConnect: true}, nil
}

// AuthorizeHTTP is httpd's authority.
func (a *authority) AuthorizeHTTP(token, path string, wanted identity.Rights) error {
	if entra.IsBearer(token) {
		_, err := a.authorizeEntra(token)
		return err
	}
	t, err := a.verified(token, path)
	if err != nil {
		return err
	}
	rights, err := a.policy(t)
	if err == nil && rights&wanted == 0 {
		err = fmt.Errorf("policy %s lacks the right for this", t.KeyName)
	}
	return err
}

// AuthorizeDevice is mqttd's authority: a device signs in with a token made with
// one of its own keys or by a policy with the right DeviceConnect. A *c2d.Refusal
// with code 429001 says that the tier's new connections are used up.
func (a *authority) AuthorizeDevice(l mqttd.Login, token string) (time.Time, error) {
	expiry, err := a.signIn(l, token)
	if err == nil {
		err = a.throttle.Connect()
	}
	return expiry, err
}

func (a *authority) signIn(l mqttd.Login, token string) (time.Time, error) {
	if !a.named(l.Host) {
		return time.Time{}, fmt.Errorf("the user name is for hub %.260q, this is %s", l.Host, strings.Join(a.hosts, ", "))
	}
	if token == "" {
		return time.Time{}, errors.New("no password: devices sign in with a SAS token here")
	}
	path := "/devices/" + l.Device
	t, err := a.verified(token, path)
	if err != nil {
		return time.Time{}, err
	}
	d, err := a.Get(l.Device)
	if err != nil && !a.any {
		return time.Time{}, err
	}
	if t.KeyName != "" {
		rights, err := a.policy(t)
		if err == nil && rights&identity.DeviceConnect == 0 {
			err = fmt.Errorf("policy %s has no DeviceConnect right", t.KeyName)
		}
		return t.Expiry, err
	}
	primary, secondary := a.keys(l.Device, d)
	if !t.Verify(primary) && !t.Verify(secondary) {
		return time.Time{}, errors.New("the token is not signed with a key of this device")
	}
	return t.Expiry, nil
}

// keys are a device's own keys, or those derived for it.
func (a *authority) keys(id string, d c2d.Device) (primary, secondary []byte) {
	primary, secondary = a.identity.DeviceKeys(id)
	if d.Primary != nil {
		primary = d.Primary
	}
	if d.Secondary != nil {
		secondary = d.Secondary
	}
	return primary, secondary
}

func (a *authority) named(host string) bool {
	for _, h := range a.hosts {
		if strings.EqualFold(h, host) {
			return true
		}
	}
	return false
}

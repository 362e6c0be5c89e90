package natsio

import "time"

// quick is realTiming five times as fast.
func quick() timing {
	return timing{
		ackWait: 2 * time.Second, progress: 500 * time.Millisecond, pinnedTTL: 2 * time.Second,
		expires: time.Second, heartbeat: 300 * time.Millisecond, silence: time.Second,
		ask: 50 * time.Millisecond, refresh: time.Second,
		leaseTTL: 3 * time.Second, leaseValid: 2400 * time.Millisecond, leaseRenew: 500 * time.Millisecond, leasePoll: 80 * time.Millisecond,
	}
}

// calm is quick, but a pin and an AckWait outlast several pulls and words that are late: a machine that is slow loses
// neither.
func calm() timing {
	t := quick()
	t.ackWait, t.pinnedTTL = 5*time.Second, 5*time.Second
	return t
}

// patient is quick, but a lease lasts as long as in earnest: a machine that is slow does not lose it.
func patient() timing {
	t, real := quick(), realTiming()
	t.leaseTTL, t.leaseValid, t.leaseRenew, t.leasePoll = real.leaseTTL, real.leaseValid, real.leaseRenew, real.leasePoll
	return t
}

// steady is quick, but a lease outlasts several renewals that are late: a machine that is slow does not lose it.
func steady() timing {
	t := quick()
	t.leaseTTL, t.leaseValid = 6*time.Second, 5*time.Second
	return t
}

// unhurried is realTiming, but nothing runs out while a test lasts: what goes on did not wait for that.
func unhurried() timing {
	t := realTiming()
	t.ackWait, t.pinnedTTL, t.leaseTTL, t.leaseValid = time.Minute, time.Minute, time.Minute, 50*time.Second
	return t
}

package main

import (
	"crypto/x509"

	"downlink/bridge/app"
)

// certPool is app.RootCAs for a file that a flag named; origin says which, in errors.
func certPool(origin, file string) (*x509.CertPool, error) {
	pool, err := app.RootCAs(file)
	if err != nil {
		return nil, usagef("%s: %w", origin, err)
	}
	return pool, nil
}

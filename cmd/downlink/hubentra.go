package main

import (
	"github.com/spf13/pflag"

	"downlink/bridge/app"
	"downlink/bridge/emulator"
	"downlink/bridge/emulator/entra"
)

// hubEntraFlags say whose Entra tokens the hub takes from services.
type hubEntraFlags struct {
	issuer, ca string
}

func (f *hubEntraFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.issuer, "entra-issuer", "", "also take bearer tokens of this issuer for https://iothubs.azure.net, such as https://sts.windows.net/TENANT/")
	fs.StringVar(&f.ca, "entra-ca", "", "PEM file with a CA to trust for --entra-issuer")
}

func (f *hubEntraFlags) apply(o *emulator.Options) error {
	if f.issuer == "" {
		if f.ca != "" {
			return usagef("--entra-ca goes with --entra-issuer")
		}
		return nil
	}
	roots, err := app.RootCAs(f.ca)
	if err != nil {
		return usagef("--entra-ca: %w", err)
	}
	o.Entra = &entra.Options{Issuer: f.issuer, RootCAs: roots}
	if _, err := entra.New(*o.Entra); err != nil {
		return usagef("--entra-issuer: %w", err)
	}
	return nil
}

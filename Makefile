.PHONY: build test race lint generate bench fuzz interop

build:
	CGO_ENABLED=0 go build -trimpath -o bin/downlink ./cmd/downlink

test:
	go test ./...

race:
	go test -race -shuffle=on ./...

lint:
	@out=$$(gofmt -l .); if [ -n "$$out" ]; then echo "gofmt would change:"; echo "$$out"; exit 1; fi
	go vet ./...
	go tool staticcheck ./...

generate:
	go generate ./...

bench:
	go test -run '^$$' -bench . -benchmem ./mapping ./bridge/...

# Ten seconds of each fuzz target.
fuzz:
	@for pkg in $$(go list ./...); do \
	  for target in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "$$pkg $$target"; go test -run '^$$' -fuzz "^$$target$$" -fuzztime 10s $$pkg || exit 1; \
	  done; \
	done

# The real SDKs against the embedded hub; installs them below .interop first.
interop:
	./interop/run

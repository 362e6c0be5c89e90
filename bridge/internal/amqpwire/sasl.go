package amqpwire

// SASL outcome codes (§5.3.3.6).
const (
	SASLOk   uint8 = 0
	SASLAuth uint8 = 1
	SASLSys  uint8 = 2
)

type (
	// SASLMechanisms is §5.3.3.1.
	SASLMechanisms struct{ Mechanisms []Symbol }
	// SASLInit is §5.3.3.2. Response may be a secret.
	SASLInit struct {
		Mechanism Symbol
		Response  []byte
		Hostname  string
	}
	// SASLChallenge is §5.3.3.3.
	SASLChallenge struct{ Challenge []byte }
	// SASLResponse is §5.3.3.4.
	SASLResponse struct{ Response []byte }
	// SASLOutcome is §5.3.3.5.
	SASLOutcome struct {
		Code           uint8
		AdditionalData []byte
	}
)

// Append implements Performative. The mechanisms are always an array.
func (s *SASLMechanisms) Append(b []byte) []byte {
	f := appendList(b, descSASLMechanisms)
	f.set(AppendSymbols(f.b, s.Mechanisms))
	return f.done()
}

func (s *SASLMechanisms) decode(d *Decoder) {
	f := d.List()
	s.Mechanisms = mandatory(d, &f, "sasl-mechanisms without mechanisms", d.Symbols)
	f.Done()
}

// Append implements Performative.
func (s *SASLInit) Append(b []byte) []byte {
	f := appendList(b, descSASLInit)
	f.set(AppendSymbol(f.b, s.Mechanism))
	f.optBinary(s.Response)
	f.optString(s.Hostname)
	return f.done()
}

func (s *SASLInit) decode(d *Decoder) {
	f := d.List()
	s.Mechanism = mandatory(d, &f, "sasl-init without mechanism", d.Symbol)
	if f.Next() {
		s.Response = d.Binary()
	}
	if f.Next() {
		s.Hostname = d.Text()
	}
	f.Done()
}

// Append implements Performative.
func (s *SASLChallenge) Append(b []byte) []byte {
	f := appendList(b, descSASLChallenge)
	f.set(AppendBinary(f.b, s.Challenge))
	return f.done()
}

func (s *SASLChallenge) decode(d *Decoder) {
	f := d.List()
	s.Challenge = mandatory(d, &f, "sasl-challenge without challenge", d.Binary)
	f.Done()
}

// Append implements Performative.
func (s *SASLResponse) Append(b []byte) []byte {
	f := appendList(b, descSASLResponse)
	f.set(AppendBinary(f.b, s.Response))
	return f.done()
}

func (s *SASLResponse) decode(d *Decoder) {
	f := d.List()
	s.Response = mandatory(d, &f, "sasl-response without response", d.Binary)
	f.Done()
}

// Append implements Performative.
func (s *SASLOutcome) Append(b []byte) []byte {
	f := appendList(b, descSASLOutcome)
	f.set(AppendUbyte(f.b, s.Code))
	f.optBinary(s.AdditionalData)
	return f.done()
}

func (s *SASLOutcome) decode(d *Decoder) {
	f := d.List()
	s.Code = mandatory(d, &f, "sasl-outcome without code", d.Ubyte)
	if f.Next() {
		s.AdditionalData = d.Binary()
	}
	f.Done()
}

func (f *fields) optBinary(v []byte) {
	if v == nil {
		f.null()
		return
	}
	f.set(AppendBinary(f.b, v))
}

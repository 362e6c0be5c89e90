package amqpwire

import "fmt"

// Parser turns frame bodies into performatives. It reuses one Flow, one Transfer and one
// Disposition, since these come with every message. The zero Parser is ready to use. Not safe for concurrent use.
type Parser struct {
	d           Decoder
	flow        Flow
	transfer    Transfer
	disposition Disposition
}

// Parse reads the performative of a frame of the given type and gives what follows it. Flow,
// Transfer and Disposition are valid until the next call, all []byte as long as body is.
func (p *Parser) Parse(frameType byte, body []byte) (Performative, []byte, error) {
	p.d.Reset(body)
	code := p.d.descriptor()
	if err := p.d.Err(); err != nil {
		return nil, nil, err
	}
	perf := p.performative(frameType, code)
	if perf == nil {
		return nil, nil, fmt.Errorf("amqp: no performative 0x%x in a frame of type %d", code, frameType)
	}
	perf.decode(&p.d)
	if err := p.d.Err(); err != nil {
		return nil, nil, err
	}
	return perf, p.d.Rest(), nil
}

func (p *Parser) performative(frameType byte, code uint64) Performative {
	if frameType == FrameSASL {
		switch code {
		case descSASLMechanisms:
			return new(SASLMechanisms)
		case descSASLInit:
			return new(SASLInit)
		case descSASLChallenge:
			return new(SASLChallenge)
		case descSASLResponse:
			return new(SASLResponse)
		case descSASLOutcome:
			return new(SASLOutcome)
		}
		return nil
	}
	if frameType != FrameAMQP {
		return nil
	}
	switch code {
	case descOpen:
		return new(Open)
	case descBegin:
		return new(Begin)
	case descAttach:
		return new(Attach)
	case descFlow:
		return &p.flow
	case descTransfer:
		return &p.transfer
	case descDisposition:
		return &p.disposition
	case descDetach:
		return new(Detach)
	case descEnd:
		return new(End)
	case descClose:
		return new(Close)
	}
	return nil
}

// Package bench measures the bridge as a user runs it: with NATS, the embedded
// hub, the bridge and what it is compared with in processes of their own, so that
// CPU and memory are those of one of them, and in turn in one run, so that a busy
// machine is busy for all of them.
//
// Each process is this same binary again. It reads a Spec from stdin, says on
// stdout when it is ready, answers each further line with a Stat, and ends when
// stdin ends: so none of them outlives the process that measures, however that
// ends. The bridge part is built from a configuration by app, as downlink bridge
// builds it; nothing here knows the engine.
package bench

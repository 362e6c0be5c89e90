// Package sas makes, reads and verifies IoT Hub connection strings and shared
// access signature tokens (IoT Hub developer guide, "Control access with
// shared access signatures"). Both our clients and the embedded hub use it;
// golden vectors pin it.
package sas

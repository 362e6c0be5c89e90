package hubdevice

import "time"

// Hurry shortens what a test would wait for.
func (c *Client) Hurry(retry, refused, stable time.Duration) {
	c.timing = timing{retry: retry, retryMax: 4 * retry, refused: refused, refusedMax: 4 * refused, stable: stable}
}

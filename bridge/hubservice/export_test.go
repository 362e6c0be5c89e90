package hubservice

import (
	"net/http"
	"net/url"
	"time"
)

// SetProxy is for tests before Run: the environment's proxy is read once a
// process, and never used for this machine.
func (c *Client) SetProxy(proxy func(*http.Request) (*url.URL, error)) { c.proxy = proxy }

// SetCheck is for tests before Run: how often files are looked at.
func (c *Client) SetCheck(every time.Duration) { c.pace.check = every }

package httpd

import (
	"net/http"
	"strconv"

	"downlink/bridge/emulator/c2d"
	"downlink/bridge/emulator/feedback"
)

// receiveFeedback locks the oldest batch and returns it; its lock token is the
// ETag (azure-iot-hub-python, cloud_to_device_messages_operations.py).
func (s *Server) receiveFeedback(w http.ResponseWriter, _ *http.Request) {
	b, ok := s.feedback.Receive()
	if !ok {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	h := w.Header()
	h.Set("Content-Type", feedback.ContentType)
	h.Set("ETag", strconv.Quote(b.LockToken))
	h.Set("iothub-messagelocktoken", b.LockToken)
	h.Set("iothub-enqueuedtime", timestamp(b.Enqueued))
	h.Set("iothub-sequencenumber", strconv.FormatUint(b.Sequence, 10))
	h.Set("iothub-deliverycount", strconv.Itoa(b.Deliveries))
	h.Set("iothub-userid", b.HubName)
	w.WriteHeader(http.StatusOK)
	if _, err := w.Write(b.Body); err != nil {
		s.log.Debug("reply not sent", "err", err) // the lock lapses, and the batch is received again
	}
}

func (s *Server) completeFeedback(w http.ResponseWriter, r *http.Request, token string) {
	if r.URL.Query().Has("reject") {
		s.settled(w, s.feedback.Reject(token))
		return
	}
	s.settled(w, s.feedback.Complete(token))
}

func (s *Server) abandonFeedback(w http.ResponseWriter, _ *http.Request, token string) {
	s.settled(w, s.feedback.Abandon(token))
}

func (s *Server) settled(w http.ResponseWriter, ok bool) {
	if !ok {
		s.refuse(w, &c2d.Refusal{Condition: "com.microsoft:message-lock-lost", Code: 412002, Text: "nothing is locked with this token"})
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

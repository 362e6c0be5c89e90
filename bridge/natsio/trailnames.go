package natsio

// ReceiptStream is the stream that holds the receipts of a bridge of this name.
func ReceiptStream(name string) string { return streamName(name) + "_RECEIPTS" }

func receiptPrefix(name string) string { return name + ".receipt." }

// MailboxStream is the stream that holds what waits of a bridge of this name.
func MailboxStream(name string) string { return streamName(name) + "_MAILBOX" }

func mailboxPrefix(name string) string { return name + ".mailbox." }

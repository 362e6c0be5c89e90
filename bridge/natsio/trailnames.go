package natsio

// ReceiptStream is the stream that holds the receipts of a bridge of this name.
func ReceiptStream(name string) string { return streamName(name) + "_RECEIPTS" }

func receiptPrefix(name string) string { return name + ".receipt." }

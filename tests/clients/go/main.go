// Requests of Go: the version of HTTP, and then URL, header, value, again and again.
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
)

func main() {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	if os.Args[1] == "2" {
		transport.ForceAttemptHTTP2 = true
	} else {
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	client := &http.Client{Transport: transport}
	for rest := os.Args[2:]; len(rest) >= 3; rest = rest[3:] {
		request, err := http.NewRequest("GET", rest[0], nil)
		if err == nil {
			request.Header.Set(rest[1], rest[2])
			if filler, _ := strconv.Atoi(os.Getenv("FILLER")); filler > 0 {
				request.Header.Set("A-Filler", strings.Repeat("x", filler))
			}
			var answer *http.Response
			if answer, err = client.Do(request); err == nil {
				_, err = io.ReadAll(answer.Body)
				answer.Body.Close()
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	// Until its standard input ends: somebody compares its memory with its file.
	if os.Getenv("WAIT") != "" {
		fmt.Println("waiting")
		io.ReadAll(os.Stdin)
	}
}

// A server and a client that speak HTTP/2 over TLS:
//
//	http2 serve ADDRESS CERTIFICATE KEY   prints "ready", answers until its input ends
//	http2 load URL SECONDS                prints requests per second, p50 and p99 in milliseconds
package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

const clients = 8

func main() {
	if os.Args[1] == "serve" {
		serve(os.Args[2], os.Args[3], os.Args[4])
	} else {
		seconds, err := strconv.Atoi(os.Args[3])
		check(err)
		load(os.Args[2], time.Duration(seconds)*time.Second)
	}
}

func serve(address, certificate, key string) {
	listener, err := net.Listen("tcp", address)
	check(err)
	body := []byte(strings.Repeat("x", 200))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write(body)
	})}
	go func() { check(server.ServeTLS(listener, certificate, key)) }()
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
}

func load(url string, length time.Duration) {
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2: true,
	}}
	var group sync.WaitGroup
	var lock sync.Mutex
	var all []float64
	end := time.Now().Add(length)
	for range clients {
		group.Add(1)
		go func() {
			defer group.Done()
			var times []float64
			for time.Now().Before(end) {
				begin := time.Now()
				request, err := http.NewRequest("GET", url, nil)
				check(err)
				request.Header.Set("Authorization", "Bearer ghp_FAKEfakeFAKEfakeFAKEfakeFAKEfake0000")
				response, err := client.Do(request)
				check(err)
				if response.ProtoMajor != 2 {
					panic("not HTTP/2")
				}
				io.Copy(io.Discard, response.Body)
				response.Body.Close()
				times = append(times, float64(time.Since(begin).Microseconds())/1000)
			}
			lock.Lock()
			all = append(all, times...)
			lock.Unlock()
		}()
	}
	group.Wait()
	sort.Float64s(all)
	fmt.Println(float64(len(all))/length.Seconds(), all[len(all)/2], all[len(all)*99/100])
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
